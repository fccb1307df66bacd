#!/usr/bin/env python3
"""The PyTorch peer of `hadal bench train --against torch`: a training step of the same DeepSeek-V3-type model.

MLA (low-rank q and kv, decoupled interleaved RoPE), leading dense layers, MoE (sigmoid gate, top-k on biased scores,
normalised weights x route scale, shared expert, bias update), one MTP module, AdamW. Written for Debian's PyTorch 1.13.1
and run by later ones too. The fastest of the variants tried: tokens sorted by expert, one product an expert into
preallocated buffers, a hand-written backward of the MoE, expert segments padded to 64 rows (oneDNN compiles a product for
each new shape), malloc and AVX-512 settings (about +25 %).

  python3 bench/peers/torch_v3_train.py --dtype bf16 --threads 2 --json     # autocast, f32 master weights
  python3 bench/peers/torch_v3_train.py --check                             # the hand-written backward against autograd

Debian: apt-get install python3-torch python3-numpy libopenblas0-openmp   (without OpenBLAS its f32 products are reference BLAS)
"""
import argparse, json, math, os, resource, statistics, time
ap = argparse.ArgumentParser()
A = ap.add_argument
A('--dim', type=int, default=256); A('--layers', type=int, default=8); A('--dense-layers', type=int, default=1)
A('--heads', type=int, default=8); A('--q-lora', type=int, default=128); A('--kv-lora', type=int, default=64)
A('--nope', type=int, default=32); A('--rope', type=int, default=16); A('--vdim', type=int, default=32)
A('--inter', type=int, default=768); A('--experts', type=int, default=16); A('--topk', type=int, default=4)
A('--shared', type=int, default=1); A('--moe-inter', type=int, default=128); A('--route-scale', type=float, default=2.5)
A('--vocab', type=int, default=4096); A('--seq', type=int, default=256); A('--batch', type=int, default=16)
A('--mtp', type=int, default=1); A('--mtp-weight', type=float, default=0.3)
A('--dtype', choices=['f32', 'bf16'], default='f32'); A('--threads', type=int, default=2)
A('--steps', type=int, default=20); A('--warmup', type=int, default=3); A('--lr', type=float, default=1e-3)
A('--gamma', type=float, default=1e-3, help='bias update speed'); A('--seed', type=int, default=0); A('--std', type=float, default=0.02, help='init standard deviation')
A('--pad', type=int, default=-1, help='pad each expert segment to a multiple of this many rows (-1: 64 for bf16 so that oneDNN primitives are reused instead of JIT-compiled for every new shape, 1 for f32)')
A('--moe-impl', choices=['grouped', 'autograd'], default='grouped')
A('--clean', type=float, default=0.05, help='a step counts as clean when other processes used less than this share of the cpus')
A('--max-seconds', type=float, default=1e9); A('--check', action='store_true'); A('--json', action='store_true'); A('--profile', action='store_true')
A('--no-tune', action='store_true', help='do not re-exec with the malloc/AVX-512 settings below (they give about +25 percent with Debian torch)')
a = ap.parse_args()
TUNE = dict(ATEN_CPU_CAPABILITY='avx512', MALLOC_MMAP_THRESHOLD_='4294967296', MALLOC_TRIM_THRESHOLD_='17179869184', MALLOC_TOP_PAD_='268435456', GLIBC_TUNABLES='glibc.malloc.hugetlb=1', OMP_NUM_THREADS=str(a.threads))
if not a.no_tune and os.environ.get('V3_TUNED') != '1':
    import sys; os.execve(sys.executable, [sys.executable] + sys.argv, {**os.environ, **TUNE, 'V3_TUNED': '1'})
import torch, torch.nn as nn, torch.nn.functional as F
torch.set_num_threads(a.threads); torch.manual_seed(a.seed)
BF = a.dtype == 'bf16'; LP = torch.bfloat16; PAD = a.pad if a.pad > 0 else (64 if BF else 1)

class RMSNormF(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, eps):
        x = x.float(); n = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inv = (n * n / x.shape[-1] + eps).rsqrt_(); xh = x * inv
        ctx.save_for_backward(xh, inv, w); return xh * w
    @staticmethod
    def backward(ctx, dy):
        xh, inv, w = ctx.saved_tensors
        dw = (dy * xh).flatten(0, -2).sum(0); g = dy * w
        c = torch.linalg.vecdot(g, xh).unsqueeze(-1) if hasattr(torch.linalg, 'vecdot') else (g * xh).sum(-1, keepdim=True)
        return (g - xh * (c / xh.shape[-1])).mul_(inv), dw, None
class RMSNorm(nn.Module):
    def __init__(s, d): super().__init__(); s.w = nn.Parameter(torch.ones(d))
    def forward(s, x): return RMSNormF.apply(x, s.w, 1e-6)

def rope(x, cs):  # x [B,S,H,R], interleaved pairs as in DeepSeek-V3
    xc = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(xc * cs).flatten(-2)

class GroupedMoE(torch.autograd.Function):
    """out[t] = sum_k w[t,k] * W2[e] (silu(W1[e] x_t) * W3[e] x_t),  e = idx[t,k]"""
    @staticmethod
    def forward(ctx, x, wts, w13, w2, order, inv, tok, pos, off, K, lp):
        with torch.autocast('cpu', enabled=False):
            T, D = x.shape; E, I2, _ = w13.shape; I = I2 // 2; N = off[-1]
            dt = LP if lp else torch.float32
            x_, w13_, w2_ = x.to(dt), w13.to(dt), w2.to(dt)
            xs = x_.index_select(0, tok); h = torch.empty(N, I2, dtype=dt)
            for e in range(E):
                if off[e + 1] > off[e]: torch.mm(xs[off[e]:off[e + 1]], w13_[e].t(), out=h[off[e]:off[e + 1]])
            ws = torch.zeros(N, dtype=dt); ws[pos] = wts.reshape(-1).index_select(0, order).to(dt); ws = ws.unsqueeze(1)
            act = F.silu(h[:, :I]); act.mul_(h[:, I:]); aw = act * ws
            y = torch.empty(N, D, dtype=dt)
            for e in range(E):
                if off[e + 1] > off[e]: torch.mm(aw[off[e]:off[e + 1]], w2_[e].t(), out=y[off[e]:off[e + 1]])
            out = y.index_select(0, inv).view(T, K, D).sum(1)
            ctx.save_for_backward(xs, h, act, aw, ws, w13_, w2_, inv, tok); ctx.off, ctx.K, ctx.E = off, K, E
            return out.to(x.dtype)
    @staticmethod
    def backward(ctx, dout):
        xs, h, act, aw, ws, w13, w2, inv, tok = ctx.saved_tensors; off, K, E = ctx.off, ctx.K, ctx.E
        dt = xs.dtype; I = h.shape[1] // 2; N, D = xs.shape; T = inv.numel() // K
        dy = dout.to(dt).index_select(0, tok); daw = torch.empty_like(aw); dw2 = torch.zeros_like(w2) if min(off[e+1]-off[e] for e in range(E)) == 0 else torch.empty_like(w2)
        for e in range(E):
            s, t = off[e], off[e + 1]
            if t > s: torch.mm(dy[s:t], w2[e], out=daw[s:t]); torch.mm(dy[s:t].t(), aw[s:t], out=dw2[e])
        dws = (daw * act).sum(1, dtype=torch.float32); daw.mul_(ws)
        g, u = h[:, :I], h[:, I:]; dh = torch.empty_like(h); sg = torch.sigmoid(g)
        sl = sg * g; torch.mul(daw, sl, out=dh[:, I:])                 # du
        d = sg + sl * (1 - sg); d.mul_(u); torch.mul(daw, d, out=dh[:, :I])  # dg
        dxs = torch.empty_like(xs); dw13 = torch.zeros_like(w13) if dw2.numel() and min(off[e+1]-off[e] for e in range(E)) == 0 else torch.empty_like(w13)
        for e in range(E):
            s, t = off[e], off[e + 1]
            if t > s: torch.mm(dh[s:t], w13[e], out=dxs[s:t]); torch.mm(dh[s:t].t(), xs[s:t], out=dw13[e])
        dx = dxs.index_select(0, inv).view(T, K, D).sum(1)
        return dx.to(dout.dtype), dws.index_select(0, inv).view(T, K), dw13.float(), dw2.float(), None, None, None, None, None, None, None

class MLA(nn.Module):
    def __init__(s):
        super().__init__(); L = lambda i, o: nn.Linear(i, o, bias=False)
        s.qa, s.qn, s.qb = L(a.dim, a.q_lora), RMSNorm(a.q_lora), L(a.q_lora, a.heads * (a.nope + a.rope))
        s.kva, s.kvn, s.kvb = L(a.dim, a.kv_lora + a.rope), RMSNorm(a.kv_lora), L(a.kv_lora, a.heads * (a.nope + a.vdim))
        s.o = L(a.heads * a.vdim, a.dim)
    def forward(s, x, cs, mask):
        B, S, _ = x.shape; H = a.heads
        q = s.qb(s.qn(s.qa(x))).view(B, S, H, a.nope + a.rope); qn, qr = q.split([a.nope, a.rope], -1)
        c, kr = s.kva(x).split([a.kv_lora, a.rope], -1)
        kv = s.kvb(s.kvn(c)).view(B, S, H, a.nope + a.vdim); kn, v = kv.split([a.nope, a.vdim], -1)
        qr = rope(qr, cs).to(qn.dtype); kr = rope(kr.unsqueeze(2), cs).to(kn.dtype).expand(B, S, H, a.rope)
        q = torch.cat([qn, qr], -1).transpose(1, 2).reshape(B * H, S, -1); k = torch.cat([kn, kr], -1).transpose(1, 2).reshape(B * H, S, -1)
        v = v.transpose(1, 2).reshape(B * H, S, -1)
        p = torch.baddbmm(mask.to(q.dtype), q, k.transpose(1, 2), alpha=(a.nope + a.rope) ** -0.5).softmax(-1)
        if BF: p = p.to(LP)
        return s.o(torch.bmm(p, v).view(B, H, S, -1).transpose(1, 2).reshape(B, S, -1))

class FFN(nn.Module):
    def __init__(s, inter):
        super().__init__(); s.w13 = nn.Linear(a.dim, 2 * inter, bias=False); s.w2 = nn.Linear(inter, a.dim, bias=False)
    def forward(s, x): g, u = s.w13(x).chunk(2, -1); return s.w2(F.silu(g) * u)

class MoE(nn.Module):
    def __init__(s):
        super().__init__(); E, I = a.experts, a.moe_inter
        s.gate = nn.Parameter(torch.empty(E, a.dim)); s.w13 = nn.Parameter(torch.empty(E, 2 * I, a.dim)); s.w2 = nn.Parameter(torch.empty(E, a.dim, I))
        s.sh = FFN(I * a.shared); s.register_buffer('bias', torch.zeros(E)); s.load = None
    def forward(s, x):
        B, S, D = x.shape; x = x.reshape(-1, D)
        with torch.autocast('cpu', enabled=False): sc = torch.sigmoid(x.float() @ s.gate.t())
        idx = (sc.detach() + s.bias).topk(a.topk, -1, sorted=False)[1]
        w = sc.gather(1, idx); w = w / w.sum(-1, keepdim=True) * a.route_scale
        f = idx.reshape(-1); cnt = torch.bincount(f, minlength=a.experts); s.load = cnt
        order = f.argsort(); pc = (cnt + PAD - 1) // PAD * PAD; off = [0] + pc.cumsum(0).tolist()
        pos = torch.arange(order.numel()) + torch.repeat_interleave((pc - cnt).cumsum(0) - (pc - cnt), cnt)  # row of each sorted slot
        inv = torch.empty_like(order); inv[order] = pos; tok = torch.zeros(off[-1], dtype=torch.long); tok[pos] = order // a.topk
        if a.moe_impl == 'grouped': y = GroupedMoE.apply(x, w, s.w13, s.w2, order, inv, tok, pos, off, a.topk, BF)
        else:  # plain autograd: split + per-expert matmul + cat
            ws = torch.zeros(off[-1]); ws[pos] = w.reshape(-1)[order]; ws = ws.unsqueeze(1); o = []
            for e, xe in enumerate(x[tok].split([off[i + 1] - off[i] for i in range(a.experts)])):
                g, u = (xe @ s.w13[e].t()).chunk(2, -1); o.append((F.silu(g) * u) @ s.w2[e].t())
            y = (torch.cat(o).to(ws.dtype) * ws)[inv].view(-1, a.topk, D).sum(1)
        return (y + s.sh(x)).view(B, S, D)
    @torch.no_grad()
    def update_bias(s): l = s.load.float(); s.bias += a.gamma * torch.sign(l.mean() - l)

class Block(nn.Module):
    def __init__(s, moe): super().__init__(); s.n1, s.at, s.n2, s.ff = RMSNorm(a.dim), MLA(), RMSNorm(a.dim), (MoE() if moe else FFN(a.inter))
    def forward(s, x, cs, mask): x = x + s.at(s.n1(x), cs, mask); return x + s.ff(s.n2(x))

class Model(nn.Module):
    def __init__(s):
        super().__init__(); s.emb = nn.Embedding(a.vocab, a.dim); s.layers = nn.ModuleList(Block(i >= a.dense_layers) for i in range(a.layers))
        s.norm, s.head = RMSNorm(a.dim), nn.Linear(a.dim, a.vocab, bias=False)
        if a.mtp: s.hn, s.en, s.proj, s.mblk, s.mnorm = RMSNorm(a.dim), RMSNorm(a.dim), nn.Linear(2 * a.dim, a.dim, bias=False), Block(True), RMSNorm(a.dim)
        for p in s.parameters():
            if p.dim() > 1: nn.init.normal_(p, 0, a.std)
        f = 1.0 / (10000 ** (torch.arange(0, a.rope, 2).float() / a.rope)); ang = torch.outer(torch.arange(a.seq).float(), f)
        s.register_buffer('cs', torch.polar(torch.ones_like(ang), ang)[None, :, None, :])
        s.register_buffer('mask', torch.full((1, a.seq, a.seq), float('-inf')).triu(1))
    def forward(s, t):  # t [B, S+1+mtp]
        S = a.seq; h = s.emb(t[:, :S])
        for l in s.layers: h = l(h, s.cs, s.mask)
        loss = F.cross_entropy(s.head(s.norm(h)).float().view(-1, a.vocab), t[:, 1:S + 1].reshape(-1)); m = None
        if a.mtp:
            z = s.proj(torch.cat([s.en(s.emb(t[:, 1:S + 1])), s.hn(h)], -1)); z = s.mblk(z, s.cs, s.mask)
            m = F.cross_entropy(s.head(s.mnorm(z)).float().view(-1, a.vocab), t[:, 2:S + 2].reshape(-1))
            return loss + a.mtp_weight * m, loss, m
        return loss, loss, m

def batch():  # noisy affine chain over the vocabulary: learnable, so the loss falls
    n = a.seq + 1 + a.mtp; t = torch.empty(a.batch, n, dtype=torch.long); t[:, 0] = torch.randint(a.vocab, (a.batch,))
    r = torch.rand(a.batch, n); z = torch.randint(a.vocab, (a.batch, n))
    for i in range(1, n): t[:, i] = torch.where(r[:, i] < 0.1, z[:, i], (t[:, i - 1] * 5 + 17) % a.vocab)
    return t
def stat():
    f = [int(v) for v in open('/proc/stat').readline().split()[1:9]]; c = os.times()
    return sum(f), f[3] + f[4], c.user + c.system, os.sysconf('SC_CLK_TCK'), time.perf_counter()

model = Model(); moes = [m for m in model.modules() if isinstance(m, MoE)]
npar = sum(p.numel() for p in model.parameters()); nexp = sum(m.w13.numel() + m.w2.numel() for m in moes)
nact = npar - nexp + nexp * a.topk // a.experts - model.emb.weight.numel()
if a.check:
    BF = False; b = batch(); gr = {}
    for im in ('grouped', 'autograd'):
        a.moe_impl = im; model.zero_grad(); l = model(b)[0]; l.backward(); gr[im] = (l.item(), {n: p.grad.clone() for n, p in model.named_parameters()})
    worst = max(((gr['grouped'][1][n] - g).norm() / (g.norm() + 1e-12)).item() for n, g in gr['autograd'][1].items())
    print('check: losses', gr['grouped'][0], gr['autograd'][0], 'worst relative gradient difference', worst); raise SystemExit(0 if worst < 1e-4 else 1)
opt = torch.optim.AdamW(model.parameters(), lr=a.lr, betas=(0.9, 0.95), weight_decay=0.1, foreach=True)
T = a.batch * a.seq; rows = []; t_begin = time.perf_counter(); prof = None
for step in range(a.warmup + a.steps):
    b = batch(); s0 = stat(); t0 = time.perf_counter()
    if a.profile and step == a.warmup + a.steps - 1: prof = torch.profiler.profile(); prof.__enter__()
    with torch.autocast('cpu', dtype=LP, enabled=BF): loss, ml, mm = model(b)
    t1 = time.perf_counter(); opt.zero_grad(set_to_none=True); loss.backward(); t2 = time.perf_counter()
    opt.step()
    for m in moes: m.update_bias()
    t3 = time.perf_counter(); s1 = stat()
    if prof: prof.__exit__(None, None, None)
    ncpu = os.cpu_count(); wall = t3 - t0
    busy = ((s1[0] - s0[0]) - (s1[1] - s0[1])) / s0[3]; others = max(0.0, busy - (s1[2] - s0[2])) / (wall * ncpu)
    if step >= a.warmup: rows.append((wall, t1 - t0, t2 - t1, t3 - t2, others, s1[2] - s0[2]))
    if step == 0 or step == a.warmup + a.steps - 1: print(f'step {step} loss {ml.item():.4f}' + (f' mtp {mm.item():.4f}' if mm is not None else ''), flush=True)
    if time.perf_counter() - t_begin > a.max_seconds: break
if prof: print(prof.key_averages().table(sort_by='self_cpu_time_total', row_limit=25, max_name_column_width=40))
med = statistics.median; cl = [r for r in rows if r[4] < a.clean]; use = cl if len(cl) >= 3 else rows
w = med(r[0] for r in use); fl = 6 * (nact + a.mtp * a.vocab * a.dim) * T + 3 * 2 * a.batch * a.heads * a.seq * a.seq * (a.nope + a.rope + a.vdim) * (a.layers + a.mtp)  # full (uncausal) attention counted
res = dict(torch=torch.__version__, dtype=a.dtype, threads=a.threads, moe=a.moe_impl, params=npar, active=nact, tokens_per_step=T,
  steps=len(rows), clean_steps=len(cl), tok_s=T / w, tok_s_best=T / min(r[0] for r in rows), tok_s_all_median=T / med(r[0] for r in rows),
  tok_per_cpu_s=T / med(r[5] for r in use), ms=w * 1e3, ms_fwd=med(r[1] for r in use) * 1e3, ms_bwd=med(r[2] for r in use) * 1e3, ms_opt=med(r[3] for r in use) * 1e3,
  model_gflops=fl / w / 1e9, others_share_median=med(r[4] for r in rows), peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, loss=ml.item(), max_load=max((m.load.max() / m.load.float().mean()).item() for m in moes))
if a.json: print(json.dumps(res))
else:
    print(f"torch {res['torch']} {a.dtype} {a.threads} threads, {a.moe_impl} moe: {npar/1e6:.2f}M params ({nact/1e6:.2f}M active w/o embedding), {T} tokens/step")
    print(f"tokens/s {res['tok_s']:.0f} (median of {len(use)} {'clean' if use is cl else 'ALL, none clean'} steps; best {res['tok_s_best']:.0f}; all-steps median {res['tok_s_all_median']:.0f}; tokens per cpu-second {res['tok_per_cpu_s']:.0f})")
    print(f"ms/step {w*1e3:.0f} = forward {res['ms_fwd']:.0f} + backward {res['ms_bwd']:.0f} + AdamW {res['ms_opt']:.0f}; ~{res['model_gflops']:.0f} model GFLOP/s; peak RSS {res['peak_rss_mb']:.0f} MB; others' cpu share {res['others_share_median']:.2f}; max expert load {res['max_load']:.2f}x mean")
